"""Devices beside the processor: which ones there are, and the plug-ins through which TVM drives them."""
