"""What `import scalablevit as sv` offers: recipes, training and trained models as Python functions."""
