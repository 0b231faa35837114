"""Many dubs in one run: jobs from a table, handed out to processes, kept and summed up."""
