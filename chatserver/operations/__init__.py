"""What an operator sees and sets: options, log, metrics, the control socket. May import every other room."""
