"""``python -m kernelkit`` is the command ``kernelkit``."""

from kernelkit.cli.app import main

if __name__ == "__main__":
    main()
