-- node, user id: all of this user's mail is where it belongs
if redis.call('GET', p .. 'settling:' .. ARGV[2]) == ARGV[1] then
    redis.call('DEL', p .. 'settling:' .. ARGV[2])
end
