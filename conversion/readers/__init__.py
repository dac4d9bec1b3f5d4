"""Readers of checkpoint files, on this machine and on the Hub.

From bottom to top: `stored_tensors` describes tensors that have not been read, `safetensors_files` reads that format,
`data_pickles` unpickles without running code, `torch_files` finds the storages in files of torch, `torchscript` and
`pickles` find the tensors in them, `formats` is the table of the formats, `json_files` reads indexes and
configurations, `folders` finds the files of a checkpoint, `progress` shows the progress of downloads, `byte_ranges`
downloads parts of files, and `hub` reads the files of a model on the Hub.
"""
