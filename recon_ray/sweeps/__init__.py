"""Many trials of one job in parallel: seeds, hyper-parameters, few-shot folds."""
