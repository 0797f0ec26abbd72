"""What runs on a node: a client class, a mod for apps that exist."""
