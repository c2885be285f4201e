"""What tests share: heads and jobs, toy models and runs, kills, faults, pages."""
