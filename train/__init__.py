"""How parameters move: data, loss, optimiser, selection, adapters, the step, the loop."""
