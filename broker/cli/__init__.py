"""The command line: argv -> model -> one call -> model. stdout is data, stderr is talk."""
