-- id -> 1: the node that has this user online ends the connection; 0: none has
if not holder(ARGV[1]) then
    return 0
end
tell('k ' .. ARGV[1])
return 1
