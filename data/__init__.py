"""Files and sentences into token ids; knows nothing of the model (see dataloader.py for the one exception)."""
