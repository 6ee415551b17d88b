"""What several stages share: progress, the pair in memory, passes over texts, intervals, trainings."""
