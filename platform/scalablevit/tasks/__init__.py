"""What is trained: model, data set, loss and metric of each task."""
