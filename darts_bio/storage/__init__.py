"""Storage: the folder that a run leaves, and how runs are read from theirs.

run_folder.py     a run's folder and its checkpoint, which checksum.py covers
logs.py           files that a run only appends to
owner.py          who may write into a folder
status.py         how a run stands; records.py its numbers, from the end
run_list.py       runs listed from their folders; run_summary.py what is told of one
"""
