"""The command ``kernelkit``: one file for each of its subcommands."""
