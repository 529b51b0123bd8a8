-- node, id: nothing of this user is unwritten at this node any more
end_settling(ARGV[1], ARGV[2])
