"""What only many fine-tunes of one base can say: the report of a study from the reports of its members."""
