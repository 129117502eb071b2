"""``greycheck digest``: what was deferred, did not come back, and looks legitimate all the same."""
