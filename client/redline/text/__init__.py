"""Text and token functions that the client and the service share. Pure, standard library only."""
