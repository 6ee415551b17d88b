"""`make paper` and `make paper-small`: the paper's study done again on real tasks, and the page that shows it."""
