"""The command `rtm`: one file per command, registered in `main`. Nothing here imports torch before it is needed."""
