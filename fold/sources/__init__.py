"""What people have: checkpoints, archives and graphs, read without running code that nobody asked for."""
