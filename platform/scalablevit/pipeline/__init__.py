"""From a recipe to registered models: the checks, the cluster, stages, searches and their report."""
