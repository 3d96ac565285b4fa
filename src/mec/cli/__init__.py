"""The ``mec`` command: options, help, errors and shell completion."""
