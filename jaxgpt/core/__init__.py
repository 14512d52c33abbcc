"""What every stage stands on: configuration, state, the train step, the loop, the mesh, checkpoints, metrics."""
