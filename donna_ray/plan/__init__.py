"""What a run will take, in hours, nodes and money, before it is started."""
