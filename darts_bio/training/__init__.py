"""What a step is, the loop around it, and the folder it leaves behind."""
