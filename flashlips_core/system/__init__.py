"""What the machine gives and takes: time spent, memory, locks on files, child processes."""
