"""Functions on texts, tokens and messages that the client and the service share. Pure, standard library only."""
