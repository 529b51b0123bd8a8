-- node: all its users are offline
end_node(ARGV[1])
