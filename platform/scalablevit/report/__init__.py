"""Reports: HTML pages on jobs, stages and searches, made from run folders."""
