"""What is learned on texts: a module a task, listed in `table`."""
