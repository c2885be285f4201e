"""The kinds of task: model, loss, metric, prediction, error analysis and export of each."""
