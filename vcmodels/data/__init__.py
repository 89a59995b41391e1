"""The labelled volumes of a task: opened, their labels, and the statistics of their images."""
