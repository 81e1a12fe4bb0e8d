"""``python -m mlc_llm`` is the ``mlc`` command."""

from .cli.main import main

main()
