"""What an arm adds to the loss: penalties on decoder directions, and the coefficients that weigh them."""
