"""From a source to the shards of a prepared set."""
