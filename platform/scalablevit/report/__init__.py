"""What people look at: curves and pictures."""
