"""Stage resolve: fetches and checks the checkpoints and the data set, and splits the rows."""
