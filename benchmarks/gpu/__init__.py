"""Measurements on machines with a graphics card, which need not have a compiler: packed here, run there."""
