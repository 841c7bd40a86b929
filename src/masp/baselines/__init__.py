"""Systems that name the emotion of an image, MASP among them, behind one interface: one file each."""
