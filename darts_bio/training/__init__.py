"""What a step is, the loop around it, its data, and the folder it leaves behind."""
