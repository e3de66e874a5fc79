"""Training of BoostMD surrogates: windows of dynamics of a base model, and the fit to them."""
