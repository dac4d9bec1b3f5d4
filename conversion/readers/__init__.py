"""Readers of checkpoint files, on this machine and on the Hub.

From bottom to top: `stored_tensors` describes tensors that have not been read, `safetensors_files`, `pickles` and
`torchscript` read one file format each, `formats` is the table of them, `folders` finds the files of a checkpoint,
`progress` shows the progress of downloads, `byte_ranges` downloads parts of files, and `hub` reads the files of a
model on the Hub.
"""
