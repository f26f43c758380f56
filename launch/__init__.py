"""Commands and launchers: everything between a command line (or notebook) and the processes that train."""
