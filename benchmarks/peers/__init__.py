"""The alternatives that users have, each as its own documents recommend, in an environment of its own."""
