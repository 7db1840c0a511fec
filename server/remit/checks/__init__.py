"""The questions asked of a call before it is let out: one file each. They read and never write."""
