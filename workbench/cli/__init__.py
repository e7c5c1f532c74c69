"""The command line: `workbench COMMAND`."""
