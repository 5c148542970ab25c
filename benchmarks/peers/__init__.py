"""What a user would pick instead, each as its own documents say, run in an environment of its own."""
