"""What is done to every volume before a network sees it, and undone to what the network gives."""
