"""What networks are fed with: data sets in memory and on disk, batches of them by seed and step."""
